-- A query of words like those given (misspelt, or a part of one): each word's nearest ten and the twenty shortest that contain it.
CREATE OR REPLACE FUNCTION {search}.similar_query(given text) RETURNS tsquery LANGUAGE plpgsql STABLE
AS $$
DECLARE
    one text; found tsquery; result tsquery; near text[];
BEGIN
    FOR one IN SELECT DISTINCT left(lexeme, 40) FROM unnest(to_tsvector('pg_catalog.simple', left(given, 1000))) LIMIT 8 LOOP
        SELECT array(SELECT word FROM {search}.words WHERE word OPERATOR({trgm}.%) one AND {trgm}.similarity(word, one) >= 0.4
                      ORDER BY {trgm}.similarity(word, one) DESC, word LIMIT 10)
            || array(SELECT word FROM {search}.words WHERE length(one) >= 3 AND strpos(word, one) > 0
                        AND word LIKE '%' || replace(replace(replace(one, '\', '\\'), '%', '\%'), '_', '\_') || '%'
                      ORDER BY length(word), word LIMIT 20)
            || one INTO near;
        SELECT string_agg(DISTINCT quote_literal(replace(w, '\', '\\')), ' | ')::tsquery INTO found FROM unnest(near) w;
        result := CASE WHEN result IS NULL THEN found ELSE result && found END;
    END LOOP;
    RETURN result;
END $$;
